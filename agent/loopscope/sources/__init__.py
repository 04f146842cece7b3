"""What observes: one file per observed thing. Sources are blind to exporters."""
