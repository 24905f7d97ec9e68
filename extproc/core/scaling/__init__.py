"""How many replicas a pool needs, before it needs them: demand, forecasts, capacity, plans."""
