"""The jobs of the commands: they load the network and the data by name and call the library. Prints nothing."""
