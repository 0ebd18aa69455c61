"""How a state moves, and what survives when it stops."""
