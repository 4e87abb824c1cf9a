from utils.log import say


def test_what_a_file_brings_does_not_steer_the_terminal(capsys):
    say("class \x1b[31mred\u202e, café\n\tdone")
    assert capsys.readouterr().err == "class ?[31mred?, café\n\tdone\n"
