"""One file a method. A new file here, or an entry point "tokred.methods", is all that a new method takes."""
