"""What stands between the network and the routes: limits, keys, slow clients, and how many requests are taken."""
