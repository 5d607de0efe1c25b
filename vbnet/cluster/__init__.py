"""Labs: a file that says which guests, switches and uplinks there are, and what brings them up and removes them.

topology.py  the lab file and every mistake in it          plan.py     what has to be done, as data
launch.py    processes that cannot outlive their lab       lab.py      the lab itself: up, run, down
netns.py     network namespaces without names              clean.py    what dead labs left, and its removal
guests/      what runs inside a guest's process            state.py    what other shells can read
monitor.py   Prometheus and Grafana beside labs            keeper.py   other people's programs, ended with us
"""
