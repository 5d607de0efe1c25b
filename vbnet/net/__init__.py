"""What Ethernet looks like: addresses and frames. Pure values; nothing here opens or sends anything."""
