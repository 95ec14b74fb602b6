"""The landscape around parameters: pure functions of a loss and the parameters."""
