"""Reports: a run folder as a terminal table, as plots and as one HTML file."""
