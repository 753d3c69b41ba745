"""The commands, one file each. They parse and print; heavy imports are inside, so that --help is fast."""
