"""From tile and kern to the .d1x binary."""
