"""The commands of `phikit`, a file for each kind; `phikit.cli` puts them together."""
