"""Pictures: charts with intervals, and contact sheets to judge by eye."""
