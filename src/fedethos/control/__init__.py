"""The control socket: how the command line and probes talk to a running coordinator or node on the same machine.

gRPC on a Unix socket that only its owner can open; nothing of it listens on the network. ``control.proto`` describes the service,
``serving.py`` is the side of the process, ``calling.py`` that of the command, ``probe.py`` a health check for Docker and Kubernetes.
"""
