"""Pictures of what methods make of images: where tokens go, drawn, captioned and laid out on a page."""
