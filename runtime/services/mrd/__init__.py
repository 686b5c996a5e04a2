"""A detector behind an ISMRMRD/MRD socket, as FIRE, OpenRecon and Gadgetron clients speak it."""
