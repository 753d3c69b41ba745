"""The commands, a file for each. They parse and print; heavy imports stand inside, so that --help is fast."""
