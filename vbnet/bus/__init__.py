"""The bus itself, as both sides see it: messages, handles, object model, sockets, keys, and the operator's client.

``messages``   what travels, typed and versioned          ``model``      buses, devices, plugs, dev-ids: no I/O
``limits``     how much of anything a peer may have        ``handles``    numbers a guest holds for things of the host
``transport``  ZeroMQ sockets with bounds                  ``fdpass``     descriptors over a Unix socket
``keys``       CURVE keys and the allow-list               ``rundir``     the private folder all sockets live in
``kinds``      device kinds, discovered                    ``operator``   the administrator's client
``handover``   an operator's descriptors                   ``admin``      what operators say and are answered
"""
