"""A DICOM node: series in by C-STORE, results out by C-STORE, nothing lost in between."""
