"""Other libraries on ipcmap: one module for each, which imports that library."""
