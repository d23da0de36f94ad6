"""The figures and tables of the paper at a size that anyone can run; they fill docs/results/."""
