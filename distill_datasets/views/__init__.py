"""Views of images: augmented, cropped, recorded."""
