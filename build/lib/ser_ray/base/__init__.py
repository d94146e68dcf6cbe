"""What knows nothing of speech: errors, the console, files, settings and their flags, the cluster."""
