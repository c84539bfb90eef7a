"""The command line: one thin file per command. Rooms are imported inside commands, so that help answers at once."""
