"""What runs inside the sandbox: Python's standard library alone, no other part of phikit."""
