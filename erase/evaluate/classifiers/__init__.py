"""How far an unlearned classifier is from a retrained one."""
