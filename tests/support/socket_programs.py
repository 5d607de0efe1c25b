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
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
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
