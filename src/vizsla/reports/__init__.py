"""Reports: from what a folder holds to one file that opens anywhere."""
