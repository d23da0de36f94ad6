"""Programs that make or select the clips of the small models, one for each data set."""
