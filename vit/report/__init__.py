"""What people look at; only this room draws."""
