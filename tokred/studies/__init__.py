"""Studies that use tokred and that nothing in tokred imports."""
