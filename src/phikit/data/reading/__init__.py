"""One file for each kind of file that documents come from; `phikit.data.readers` chooses."""
