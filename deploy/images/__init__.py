"""The images of the services and of the bus: what each is made of (`plan`), and how they are built (`build`)."""
