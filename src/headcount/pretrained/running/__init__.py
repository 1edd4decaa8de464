"""Running a pretrained model: looking into its attention, a layer at a time."""
