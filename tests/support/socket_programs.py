"""Small Python programs that tests run inside guests' namespaces: they know nothing of vbnet, only sockets.

Each prints one JSON line with what it saw; a server prints ``ready`` first.
"""

ECHO_CLIENT = """
import json, random, socket, sys
address, port, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = random.Random(total).randbytes(total)
with socket.create_connection((address, port), timeout=20) as connection:
    got, sent = b"", 0
    while len(got) < total:
        if sent < total and sent - len(got) < 8192:
            sent += connection.send(data[sent : sent + 4096])
        else:
            piece = connection.recv(65536)
            assert piece, "closed early"
            got += piece
    connection.shutdown(socket.SHUT_WR)
    rest = connection.recv(1)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    datagrams.settimeout(20)
    datagrams.connect((address, port))
    echoes = []
    for length in (0, 1, 1472):
        datagrams.send(data[:length])
        echoes.append(datagrams.recv(65536) == data[:length])
print(json.dumps({"tcp_is_equal": got == data, "tcp_rest": len(rest), "udp_are_equal": echoes}))
"""

FILE_RECEIVER = """
import hashlib, json, socket, sys
digest, total = hashlib.sha256(), 0
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], int(sys.argv[2])), family=family) as server:
    print("ready", flush=True)
    server.settimeout(30)
    connection, _ = server.accept()
    with connection:
        connection.settimeout(30)
        while piece := connection.recv(1 << 16):
            digest.update(piece)
            total += len(piece)
print(json.dumps({"sha256": digest.hexdigest(), "bytes": total}))
"""

FILE_SENDER = """
import hashlib, json, random, socket, sys
address, port, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = random.Random(7).randbytes(total)
with socket.create_connection((address, port), timeout=30) as connection:
    connection.sendall(data)
print(json.dumps({"sha256": hashlib.sha256(data).hexdigest(), "bytes": total}))
"""

UDP_SENDER = """
import random, socket, sys
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
source = random.Random(count)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    datagrams.connect((address, port))
    datagrams.settimeout(20)
    for _ in range(count):
        data = source.randbytes(source.randrange(1473))
        datagrams.send(data)
        assert datagrams.recv(65536) == data
"""

UDP_SEGMENTS_RECEIVER = """
import json, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
    datagrams.bind((sys.argv[1], int(sys.argv[2])))
    datagrams.settimeout(20)
    print("ready", flush=True)
    got = [datagrams.recv(65536) for _ in range(int(sys.argv[3]))]
print(json.dumps({"lengths": [len(data) for data in got], "first": [data[0] for data in got]}))
"""

UDP_SEGMENTS_SENDER = """
import json, socket, sys
address, port, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
UDP_SEGMENT = 103
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
    datagrams.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
    datagrams.connect((address, port))
    data = b"".join(bytes([number]) * size for number in range(count))[:-1]
    print(json.dumps({"sent": datagrams.send(data)}))
"""
