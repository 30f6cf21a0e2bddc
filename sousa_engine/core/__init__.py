"""What things are: errors, configs, records and the words of the command line."""
