"""What every stage needs besides networks and pruning: data, training, files, command line."""
