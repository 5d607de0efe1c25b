"""What DPDK's testpmd prints, read."""

from vbnet.load.bench.peers.testpmd import PortStatistics, parse_port_statistics, why_not_installed

ONE_PORT = """\
show port stats all

  ######################## NIC statistics for port 0  ########################
  RX-packets: 4916576    RX-missed: 0          RX-bytes:  314660864
  RX-errors: 0
  RX-nombuf:  0         
  TX-packets: 4917600    TX-errors: 3          TX-bytes:  314726400

  Throughput (since last show)
  Rx-pps:      1973187          Rx-bps:   1010271912
  Tx-pps:      1973233          Tx-bps:   1010295448
  ############################################################################
testpmd> """  # noqa: W291 - as the program prints it

SECOND_PORT_CUT = """
  ######################## NIC statistics for port 1  ########################
  RX-packets: 7          RX-missed: 9          RX-bytes:  448
  RX-errors: 0
"""


def test_the_statistics_of_a_port_are_read() -> None:
    """Packets since the start and rates since the last question, each from its own line."""
    expected = PortStatistics(
        port=0,
        rx_packets=4_916_576,
        tx_packets=4_917_600,
        rx_missed=0,
        tx_errors=3,
        rx_pps=1_973_187,
        tx_pps=1_973_233,
    )

    assert [expected] == parse_port_statistics(ONE_PORT)


def test_each_port_gets_its_own_figures() -> None:
    """Ports are told apart by their headings, in the order they are told."""
    both = ONE_PORT + ONE_PORT.replace("port 0", "port 1").replace("4916576", "8")

    assert [(0, 4_916_576), (1, 8)] == [(found.port, found.rx_packets) for found in parse_port_statistics(both)]


def test_a_port_told_incompletely_is_left_out() -> None:
    """Half an answer is no answer; what came before it still counts."""
    assert [0] == [found.port for found in parse_port_statistics(ONE_PORT + SECOND_PORT_CUT)]
    assert [] == parse_port_statistics("testpmd> Bad arguments\n")


def test_a_missing_peer_says_how_to_install_it() -> None:
    """Either it is there, or the reason names packages."""
    missing = why_not_installed()

    assert missing is None or "dpdk-dev" in missing or "librte" in missing
