"""What calls MLX: nothing outside this package imports it. Importing the package itself does not either."""
