"""The shipped policies, one TOML file each. They are ordinary policy files; nothing here is code."""
