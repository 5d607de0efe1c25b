from vbnet.guestnode.sync import Guest

__all__ = ["Guest"]
