"""The compression methods: one file each, whose name is the method's name."""
