"""The images of the services: what each is made of (`plan`), and how they are built (`build`)."""
