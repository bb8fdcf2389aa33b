//! Container images: store, archives, layers and their EROFS form.
