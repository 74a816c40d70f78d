"""What the commands do: they load the network and the data by name, and call the library. Prints nothing."""
