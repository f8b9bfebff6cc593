"""Pure questions about programs: exchanges, prices, liveness."""
