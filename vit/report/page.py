"""STOP: see NOTE_FROM_OWNER.md. The owner writes this file in /work/main; skip part 4. Do not commit this file."""
