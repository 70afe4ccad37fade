"""Images of instances: built from release archives, brought from elsewhere, kept within a disk budget."""
