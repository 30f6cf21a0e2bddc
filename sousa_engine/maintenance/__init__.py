"""Looking after a workspace and an installation: doctor, check, salvage, rebuild, restore."""
