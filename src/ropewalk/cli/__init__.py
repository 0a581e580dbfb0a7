"""The command line: one thin file a command; `app` finds them and turns errors into one line."""
