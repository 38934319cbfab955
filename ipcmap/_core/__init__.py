"""The engine: shared state and how it is guarded. Floor 0; imports nothing of ipcmap above it."""
