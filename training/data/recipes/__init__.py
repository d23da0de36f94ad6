"""Where the clips of the small models come from: a program for each set."""
